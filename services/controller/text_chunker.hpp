#pragma once
/// Cuts streamed text into pieces worth speaking: at the end of a sentence, or, when one grows long, at a comma or a
/// space, in a script without spaces between any two characters. Of the first piece less is long: it is waited for. A
/// leading tag belongs to every piece of the text. A sentence of a word or two ("hello!") is spoken with the next one:
/// alone it is played before the next one's sound can be there, and models say single words badly. In front of a pause
/// of the text it is a piece.
///
/// A full stop ends no sentence inside a number, behind a title ("dr."), an initial ("j. smith") or the number of a
/// list ("2. milk"), nor behind letters with stops ("p.m.", "u.s.") when a small letter follows.
#include <string>
#include <string_view>
#include <vector>

namespace parlando::controller {

struct TextChunk {
  std::string text;           ///< what is spoken, behind the tag
  std::size_t tag_bytes = 0;  ///< of that
  std::size_t end = 0;        ///< in bytes of all text: where what is spoken ends there
};

class TextChunker {
 public:
  /// From how many bytes on a piece ends there.
  struct Limits {
    std::size_t comma_bytes, space_bytes;
    std::size_t wide_bytes;  ///< between two characters of a script without spaces, three bytes each
  };
  struct Options {
    Limits first{60, 100, 60}, later{80, 200, 120};
    std::size_t bytes_hard_max = 800;  ///< of a word
  };
  TextChunker() = default;
  explicit TextChunker(Options options) : options_(options) {}
  /// Pieces that are complete now.
  std::vector<TextChunk> push(std::string_view text);
  /// The text stands still here, as while tools work: what is left is a piece if a sentence ends there.
  std::vector<TextChunk> pause();
  /// What is left.
  std::vector<TextChunk> finish();

 private:
  void emit(std::vector<TextChunk>& out, std::size_t size);
  Options options_;
  std::string open_, tag_;
  std::size_t done_bytes_ = 0;  ///< of the text, in front of `open_`
  bool begun_ = false;
};

}  // namespace parlando::controller
