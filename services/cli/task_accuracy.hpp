#pragma once
/// What a chat model writes down of labelled recordings: whether weights of another format still hear as well.
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "common/base/result.hpp"
#include "services/llm/model/step1.hpp"

namespace parlando::cli {

/// Of a speech tokenizer, beside the language models that hear.
inline constexpr const char* kTokenizer = "Step-Audio-Tokenizer";

/// A recording's codes and its words.
struct LabelledCodes {
  std::string text;
  std::vector<std::int32_t> codes;
};

/// Whether a checkpoint is one that transcribes what it hears, with a speech tokenizer beside it.
bool is_judged(const std::filesystem::path& checkpoint);

/// The recordings of `dialogues.json` (models/nano/dialogues) that have words, what is said over answers included, with
/// 300 ms in front of and 200 ms behind the speech, as codes of a speech tokenizer. @param most  of them
/// @error naming the file, the recording, or what the tokenizer misses
Result<std::vector<LabelledCodes>> labelled_codes(const std::filesystem::path& dialogues,
                                                  const std::filesystem::path& tokenizer, int most);

/// A transcript for each, behind a greedy choice. @param directory  of the model's tokenizer and prompts
/// @error those of the engine
Result<std::vector<std::string>> transcripts_of(const std::shared_ptr<const llm::Step1>& model,
                                                const std::filesystem::path& directory,
                                                const std::vector<LabelledCodes>& recordings);

/// Words that have to be put in, left out or changed to make one text of the other; case and marks do not count.
/// @return errors, then words of `want`
std::pair<std::int64_t, std::int64_t> word_errors(const std::string& got, const std::string& want);

/// {recordings, words, source: {word_errors, word_error_rate, exact}, packed: {…}, same}
nlohmann::json judged(const std::vector<LabelledCodes>& recordings, const std::vector<std::string>& source,
                      const std::vector<std::string>& packed);

}  // namespace parlando::cli
