#pragma once
/// `/v1/audio/voices`: voices from recordings of users. Plain functions over a store, which may wait for the disk.
#include "services/gateway/http_error.hpp"
#include "services/gateway/voice_store.hpp"

namespace parlando::gateway {

/// POST a form of `name`, `transcript`, `consent` and `file` (or `audio_sample`); GET the list or one; DELETE one.
/// @param owner  name of the caller's key; empty: none
http::Response answer_voices(const http::Request& request, const VoiceStore& store, const std::string& owner,
                             std::int64_t now_seconds);

}  // namespace parlando::gateway
