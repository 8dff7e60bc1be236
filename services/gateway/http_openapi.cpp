#include "services/gateway/http_api.hpp"

namespace parlando::gateway {

std::string_view openapi_document() {
  static constexpr std::string_view kDocument = R"json({
 "openapi": "3.1.0",
 "info": {
  "title": "parlando",
  "version": "0.1.0",
  "description": "Spoken dialogue behind the endpoints of the OpenAI API. Fields not listed here are read by nobody.",
  "license": {"name": "see LICENSE of the project", "identifier": "MIT"}
 },
 "servers": [{"url": "/"}],
 "security": [{}, {"key": []}],
 "paths": {
  "/v1/chat/completions": {
   "post": {
    "operationId": "createChatCompletion",
    "summary": "An answer to messages, as text or aloud",
    "requestBody": {
     "required": true,
     "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}}
    },
    "responses": {
     "200": {
      "description": "The answer, whole or as events",
      "content": {
       "application/json": {"schema": {"$ref": "#/components/schemas/ChatCompletion"}},
       "text/event-stream": {
        "schema": {"type": "string", "description": "data: {chat.completion.chunk}, at the end data: [DONE]"}
       }
      }
     },
     "default": {"$ref": "#/components/responses/Error"}
    }
   }
  },
  "/v1/audio/speech": {
   "post": {
    "operationId": "createSpeech",
    "summary": "A text, spoken; sound leaves as it is made",
    "requestBody": {
     "required": true,
     "content": {"application/json": {"schema": {"$ref": "#/components/schemas/SpeechRequest"}}}
    },
    "responses": {
     "200": {
      "description": "Sound at 24 kHz, mono",
      "content": {
       "audio/wav": {},
       "audio/pcm": {},
       "audio/mpeg": {},
       "audio/ogg": {},
       "audio/flac": {},
       "text/event-stream": {
        "schema": {"type": "string", "description": "speech.audio.delta and speech.audio.done"}
       }
      }
     },
     "default": {"$ref": "#/components/responses/Error"}
    }
   }
  },
  "/v1/audio/transcriptions": {
   "post": {
    "operationId": "createTranscription",
    "summary": "What is said in a recording",
    "requestBody": {
     "required": true,
     "content": {"multipart/form-data": {"schema": {"$ref": "#/components/schemas/TranscriptionRequest"}}}
    },
    "responses": {
     "200": {
      "description": "The text, in the format that was asked for",
      "content": {
       "application/json": {"schema": {"$ref": "#/components/schemas/Transcription"}},
       "text/plain": {"schema": {"type": "string"}},
       "text/vtt": {"schema": {"type": "string"}},
       "text/event-stream": {
        "schema": {"type": "string", "description": "transcript.text.delta and transcript.text.done"}
       }
      }
     },
     "default": {"$ref": "#/components/responses/Error"}
    }
   }
  },
  "/v1/audio/voices": {
   "get": {
    "operationId": "listVoices",
    "summary": "The voices that were made with this key, the newest first",
    "responses": {
     "200": {
      "description": "All of them",
      "content": {"application/json": {"schema": {"$ref": "#/components/schemas/VoiceList"}}}
     },
     "default": {"$ref": "#/components/responses/Error"}
    }
   },
   "post": {
    "operationId": "createVoice",
    "summary": "A voice from a recording",
    "requestBody": {
     "required": true,
     "content": {"multipart/form-data": {"schema": {"$ref": "#/components/schemas/VoiceRequest"}}}
    },
    "responses": {
     "200": {
      "description": "The voice: its id is what `voice` of other requests takes",
      "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Voice"}}}
     },
     "default": {"$ref": "#/components/responses/Error"}
    }
   }
  },
  "/v1/audio/voices/{voice}": {
   "parameters": [
    {"name": "voice", "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}}
   ],
   "get": {
    "operationId": "retrieveVoice",
    "summary": "One voice",
    "responses": {
     "200": {
      "description": "The voice",
      "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Voice"}}}
     },
     "default": {"$ref": "#/components/responses/Error"}
    }
   },
   "delete": {
    "operationId": "deleteVoice",
    "summary": "Nobody speaks with it any more",
    "responses": {
     "200": {
      "description": "It is gone",
      "content": {
       "application/json": {
        "schema": {
         "type": "object",
         "required": ["object", "id", "deleted"],
         "properties": {
          "object": {"type": "string", "const": "audio.voice.deleted"},
          "id": {"type": "string"},
          "deleted": {"type": "boolean", "const": true}
         }
        }
       }
      }
     },
     "default": {"$ref": "#/components/responses/Error"}
    }
   }
  },
  "/v1/sessions/{session}": {
   "parameters": [
    {"name": "session", "in": "path", "required": true, "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"}},
    {
     "name": "X-Session-Token",
     "in": "header",
     "required": true,
     "description": "As `opened` of /v1/dialogue has told it",
     "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"}
    }
   ],
   "delete": {
    "operationId": "deleteSession",
    "summary": "Everything that was said in it is deleted, for good",
    "responses": {
     "200": {
      "description": "It is gone",
      "content": {
       "application/json": {
        "schema": {
         "type": "object",
         "required": ["object", "id", "deleted", "turns"],
         "properties": {
          "object": {"type": "string", "const": "session.deleted"},
          "id": {"type": "string"},
          "deleted": {"type": "boolean", "const": true},
          "turns": {"type": "integer", "minimum": 0}
         }
        }
       }
      }
     },
     "default": {"$ref": "#/components/responses/Error"}
    }
   }
  },
  "/v1/realtime/client_secrets": {
   "post": {
    "operationId": "createClientSecret",
    "summary": "What lets somebody else's browser open /v1/realtime for a while",
    "requestBody": {
     "required": false,
     "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ClientSecretRequest"}}}
    },
    "responses": {
     "200": {
      "description": "The secret, when it ends, and the session that it begins",
      "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ClientSecret"}}}
     },
     "default": {"$ref": "#/components/responses/Error"}
    }
   }
  },
  "/v1/models": {
   "get": {
    "operationId": "listModels",
    "summary": "The models",
    "responses": {
     "200": {
      "description": "All of them",
      "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ModelList"}}}
     },
     "default": {"$ref": "#/components/responses/Error"}
    }
   }
  },
  "/v1/models/{model}": {
   "get": {
    "operationId": "retrieveModel",
    "summary": "One model",
    "parameters": [
     {"name": "model", "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}}
    ],
    "responses": {
     "200": {
      "description": "The model",
      "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Model"}}}
     },
     "default": {"$ref": "#/components/responses/Error"}
    }
   }
  },
  "/healthz": {
   "get": {
    "operationId": "health",
    "summary": "The gateway is alive",
    "security": [{}],
    "responses": {"200": {"description": "It is", "content": {"text/plain": {"schema": {"type": "string"}}}}}
   }
  },
  "/readyz": {
   "get": {
    "operationId": "ready",
    "summary": "The gateway takes sessions",
    "security": [{}],
    "responses": {
     "200": {"description": "It does", "content": {"text/plain": {"schema": {"type": "string"}}}},
     "503": {"description": "Why not", "content": {"text/plain": {"schema": {"type": "string"}}}}
    }
   }
  }
 },
 "components": {
  "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
  "responses": {
   "Error": {
    "description": "What is wrong",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
   }
  },
  "schemas": {
   "Voice": {
    "type": "object",
    "additionalProperties": false,
    "required": ["object", "id", "name", "created_at"],
    "properties": {
     "object": {"type": "string", "const": "audio.voice"},
     "id": {"type": "string"},
     "name": {"type": "string"},
     "created_at": {"type": "integer"}
    }
   },
   "VoiceList": {
    "type": "object",
    "required": ["object", "data", "has_more"],
    "properties": {
     "object": {"type": "string", "const": "list"},
     "data": {"type": "array", "items": {"$ref": "#/components/schemas/Voice"}},
     "has_more": {"type": "boolean"}
    }
   },
   "VoiceRequest": {
    "type": "object",
    "required": ["name", "transcript", "consent", "file"],
    "properties": {
     "name": {"type": "string", "minLength": 1, "maxLength": 100},
     "transcript": {"type": "string", "minLength": 1, "maxLength": 2000, "description": "What is said in it"},
     "consent": {"type": "string", "minLength": 1, "maxLength": 2000, "description": "Of the speaker; it is kept"},
     "file": {
      "type": "string",
      "format": "binary",
      "description": "WAV, FLAC, Ogg or MP3, 1 to 30 s; may be called audio_sample"
     }
    }
   },
   "ClientSecretRequest": {
    "type": "object",
    "properties": {
     "expires_after": {
      "type": ["object", "null"],
      "properties": {
       "anchor": {"type": ["string", "null"], "enum": ["created_at", null]},
       "seconds": {"type": ["integer", "null"], "minimum": 10, "maximum": 7200, "default": 600}
      }
     },
     "session": {"type": ["object", "null"], "description": "As of session.update, at most 8 KiB"}
    }
   },
   "ClientSecret": {
    "type": "object",
    "required": ["value", "expires_at", "session"],
    "properties": {
     "value": {"type": "string"},
     "expires_at": {"type": "integer"},
     "session": {"type": "object"}
    }
   },
   "Error": {
    "type": "object",
    "required": ["error"],
    "properties": {
     "error": {
      "type": "object",
      "required": ["message", "type", "param", "code"],
      "properties": {
       "message": {"type": "string"},
       "type": {"type": "string"},
       "param": {"type": ["string", "null"]},
       "code": {"type": ["string", "null"]}
      }
     }
    }
   },
   "Voice": {
    "oneOf": [
     {"type": "string", "minLength": 1},
     {"type": "object", "required": ["id"], "properties": {"id": {"type": "string", "minLength": 1}}}
    ],
    "description": "A speaker of the engine; the names of OpenAI's voices mean the default one"
   },
   "ChatRequest": {
    "type": "object",
    "required": ["model", "messages"],
    "properties": {
     "model": {"type": "string"},
     "messages": {
      "type": "array",
      "minItems": 1,
      "maxItems": 2000,
      "items": {"$ref": "#/components/schemas/Message"}
     },
     "modalities": {"type": ["array", "null"], "items": {"enum": ["text", "audio"]}},
     "audio": {
      "type": ["object", "null"],
      "required": ["voice", "format"],
      "properties": {
       "voice": {"$ref": "#/components/schemas/Voice"},
       "format": {"enum": ["wav", "pcm16", "mp3", "opus", "flac"]}
      }
     },
     "stream": {"type": ["boolean", "null"]},
     "stream_options": {"type": ["object", "null"], "properties": {"include_usage": {"type": "boolean"}}},
     "tools": {
      "type": ["array", "null"],
      "maxItems": 128,
      "items": {
       "type": "object",
       "required": ["type", "function"],
       "properties": {
        "type": {"const": "function"},
        "function": {
         "type": "object",
         "required": ["name"],
         "properties": {
          "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
          "description": {"type": "string"},
          "parameters": {"type": "object"}
         }
        }
       }
      }
     },
     "tool_choice": {
      "oneOf": [
       {"enum": ["none", "auto", "required", null]},
       {
        "type": "object",
        "required": ["type", "function"],
        "properties": {
         "type": {"const": "function"},
         "function": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
        }
       }
      ]
     },
     "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
     "top_p": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
     "top_k": {"type": ["integer", "null"], "minimum": 0},
     "seed": {"type": ["integer", "null"]},
     "stop": {
      "oneOf": [
       {"type": ["string", "null"]},
       {"type": "array", "maxItems": 4, "items": {"type": "string", "minLength": 1}}
      ]
     },
     "max_tokens": {"type": ["integer", "null"], "minimum": 1, "maximum": 1000000},
     "max_completion_tokens": {"type": ["integer", "null"], "minimum": 1, "maximum": 1000000},
     "n": {"type": ["integer", "null"], "enum": [1, null]}
    }
   },
   "Message": {
    "type": "object",
    "required": ["role"],
    "properties": {
     "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
     "content": {
      "oneOf": [
       {"type": ["string", "null"]},
       {
        "type": "array",
        "minItems": 1,
        "maxItems": 100,
        "items": {
         "oneOf": [
          {
           "type": "object",
           "required": ["type", "text"],
           "properties": {"type": {"const": "text"}, "text": {"type": "string"}}
          },
          {
           "type": "object",
           "required": ["type", "input_audio"],
           "properties": {
            "type": {"const": "input_audio"},
            "input_audio": {
             "type": "object",
             "required": ["data"],
             "properties": {
              "data": {"type": "string", "contentEncoding": "base64"},
              "format": {"type": "string"}
             }
            }
           }
          }
         ]
        }
       }
      ]
     },
     "tool_call_id": {"type": "string"},
     "tool_calls": {"type": ["array", "null"], "items": {"$ref": "#/components/schemas/ToolCall"}},
     "audio": {"type": ["object", "null"], "required": ["id"], "properties": {"id": {"type": "string"}}}
    }
   },
   "ToolCall": {
    "type": "object",
    "required": ["id", "type", "function"],
    "properties": {
     "id": {"type": "string"},
     "type": {"const": "function"},
     "function": {
      "type": "object",
      "required": ["name", "arguments"],
      "properties": {"name": {"type": "string"}, "arguments": {"type": "string"}}
     }
    }
   },
   "Usage": {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": {
     "prompt_tokens": {"type": "integer"},
     "completion_tokens": {"type": "integer"},
     "total_tokens": {"type": "integer"}
    }
   },
   "ChatCompletion": {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices"],
    "properties": {
     "id": {"type": "string"},
     "object": {"const": "chat.completion"},
     "created": {"type": "integer"},
     "model": {"type": "string"},
     "choices": {
      "type": "array",
      "minItems": 1,
      "maxItems": 1,
      "items": {
       "type": "object",
       "required": ["index", "message", "finish_reason", "logprobs"],
       "properties": {
        "index": {"const": 0},
        "finish_reason": {"enum": ["stop", "length", "tool_calls"]},
        "logprobs": {"type": "null"},
        "message": {
         "type": "object",
         "required": ["role", "content", "refusal"],
         "properties": {
          "role": {"const": "assistant"},
          "content": {"type": ["string", "null"]},
          "refusal": {"type": "null"},
          "tool_calls": {"type": "array", "items": {"$ref": "#/components/schemas/ToolCall"}},
          "audio": {
           "type": "object",
           "required": ["id", "data", "transcript", "expires_at"],
           "properties": {
            "id": {"type": "string"},
            "data": {"type": "string"},
            "transcript": {"type": "string"},
            "expires_at": {"type": "integer"}
           }
          }
         }
        }
       }
      }
     },
     "usage": {"$ref": "#/components/schemas/Usage"}
    }
   },
   "SpeechRequest": {
    "type": "object",
    "required": ["model", "input", "voice"],
    "properties": {
     "model": {"type": "string"},
     "input": {"type": "string", "minLength": 1, "description": "at most 60000 bytes"},
     "voice": {"$ref": "#/components/schemas/Voice"},
     "response_format": {"enum": ["mp3", "opus", "flac", "wav", "pcm"], "default": "mp3"},
     "speed": {"type": "number", "minimum": 0.25, "maximum": 4},
     "stream_format": {"enum": ["audio", "sse"], "default": "audio"},
     "instructions": {"type": "string", "description": "the first style they name is used; music by style only"},
     "style": {
      "type": "string",
      "description": "a style tag, or a word for one; so are emotion, language and pace; one of the four"
     },
     "emotion": {"type": "string"},
     "language": {"type": "string"},
     "pace": {"type": "string"}
    }
   },
   "TranscriptionRequest": {
    "type": "object",
    "required": ["file", "model"],
    "properties": {
     "file": {
      "type": "string",
      "format": "binary",
      "description": "WAV, FLAC, Ogg or MP3, at most 25 MiB and an hour"
     },
     "model": {"type": "string"},
     "language": {"type": "string"},
     "prompt": {"type": "string"},
     "response_format": {"enum": ["json", "text", "verbose_json", "srt", "vtt"], "default": "json"},
     "stream": {"enum": ["true", "false"]},
     "temperature": {"type": "number", "minimum": 0, "maximum": 1}
    }
   },
   "Transcription": {
    "type": "object",
    "required": ["text"],
    "properties": {
     "text": {"type": "string"},
     "duration": {"type": "number"},
     "language": {"type": "string"},
     "segments": {"type": "array", "items": {"type": "object"}},
     "usage": {"type": "object"}
    }
   },
   "Model": {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
     "id": {"type": "string"},
     "object": {"const": "model"},
     "created": {"type": "integer"},
     "owned_by": {"type": "string"}
    }
   },
   "ModelList": {
    "type": "object",
    "required": ["object", "data"],
    "properties": {
     "object": {"const": "list"},
     "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}}
    }
   }
  }
 }
}
)json";
  return kDocument;
}

}  // namespace parlando::gateway
