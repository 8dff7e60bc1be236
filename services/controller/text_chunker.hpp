#pragma once
/// Cuts streamed text into pieces worth speaking: at the end of a sentence, or, when one grows long, at a comma or a
/// space. A leading tag belongs to every piece of the text.
#include <string>
#include <string_view>
#include <vector>

namespace parlando::controller {

class TextChunker {
 public:
  struct Options {
    std::size_t comma_bytes = 80, bytes_max = 200;
  };
  TextChunker() = default;
  explicit TextChunker(Options options) : options_(options) {}
  /// Pieces that are complete now.
  std::vector<std::string> push(std::string_view text);
  /// What is left.
  std::vector<std::string> finish();

 private:
  void emit(std::vector<std::string>& out, std::string piece);
  Options options_;
  std::string open_, tag_;
  bool begun_ = false;
};

}  // namespace parlando::controller
