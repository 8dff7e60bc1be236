"""Cuts the schemas of the HTTP endpoints' answers out of the published API description. `make_schemas.py OPENAPI_SUBSET > http_schemas.json`"""
import json
import sys

WANTED = ["CreateChatCompletionResponse", "CreateChatCompletionStreamResponse", "SpeechAudioDeltaEvent", "SpeechAudioDoneEvent", "CreateTranscriptionResponseJson",
          "CreateTranscriptionResponseVerboseJson", "TranscriptTextDeltaEvent", "TranscriptTextDoneEvent", "ListModelsResponse", "Model", "ErrorResponse",
          "VoiceResource", "RealtimeCreateClientSecretResponse"]
IGNORED = {"description", "example", "examples", "x-oaiMeta", "x-oaiTypeLabel", "x-oaiExpandable", "deprecated", "discriminator", "title", "optional"}


def convert(node):
    """OpenAPI's `nullable` becomes JSON Schema's null."""
    if isinstance(node, list):
        return [convert(x) for x in node]
    if not isinstance(node, dict):
        return node
    out = {k: ({n: convert(s) for n, s in v.items()} if k == "properties" else convert(v)) for k, v in node.items() if k not in IGNORED and k != "nullable"}
    if "$ref" in out:
        out["$ref"] = out["$ref"].replace("#/components/schemas/", "#/$defs/")
    return {"anyOf": [out, {"type": "null"}]} if node.get("nullable") is True else out


def references(node):
    if isinstance(node, list):
        return [r for x in node for r in references(x)]
    if isinstance(node, dict):
        own = [node["$ref"].rsplit("/", 1)[1]] if isinstance(node.get("$ref"), str) else []
        return own + [r for v in node.values() for r in references(v)]
    return []


schemas = json.load(open(sys.argv[1]))["components"]["schemas"]
found, todo = {}, [n for n in WANTED if n in schemas]
while todo:
    name = todo.pop()
    if name not in found:
        found[name] = convert(schemas[name])
        todo += references(found[name])
print(json.dumps({"$defs": dict(sorted(found.items()))}, indent=1))
