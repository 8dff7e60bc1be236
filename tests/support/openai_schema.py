"""Holds values strictly against the published schemas: required fields, types, enums, and no field that the schema does not name."""
import json
import pathlib

SCHEMAS = json.loads((pathlib.Path(__file__).parents[1] / "openai/realtime_schema.json").read_text())
EVENTS = {s["properties"]["type"]["enum"][0]: name for name, s in SCHEMAS.items()
          if name.startswith("RealtimeServerEvent") and "type" in s.get("properties", {}) and "enum" in s["properties"]["type"]}
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def is_type(value, name):
    if name == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, TYPES[name])


def problems(value, schema, at=""):
    """-> list of texts, empty when the value fits"""
    if "$ref" in schema:
        return problems(value, SCHEMAS[schema["$ref"].rsplit("/", 1)[1]], at)
    if value is None and schema.get("nullable"):
        return []
    out = []
    for union in ("anyOf", "oneOf"):
        if union in schema:
            tried = [problems(value, one, at) for one in schema[union]]
            if not any(found == [] for found in tried):
                # The branch that was meant: the one with the fewest complaints.
                out += min(tried, key=len)
    if "allOf" in schema:
        for one in schema["allOf"]:
            out += problems(value, one, at)
    kind = schema.get("type")
    if kind and not is_type(value, kind):
        return out + [f"{at or 'value'} is {value!r}, expected {kind}"]
    if "enum" in schema and value not in schema["enum"]:
        out.append(f"{at} is {value!r}, expected one of {schema['enum']}")
    if "const" in schema and value != schema["const"]:
        out.append(f"{at} is {value!r}, expected {schema['const']!r}")
    if is_type(value, "number"):
        if value < schema.get("minimum", value) or value > schema.get("maximum", value):
            out.append(f"{at} is {value}, out of range")
    if isinstance(value, dict) and "properties" in schema:
        out += [f"{at}.{name} is missing" for name in schema.get("required", []) if name not in value]
        for name, one in value.items():
            if name in schema["properties"]:
                out += problems(one, schema["properties"][name], f"{at}.{name}")
            elif not schema.get("additionalProperties"):
                out.append(f"{at}.{name} is not in the schema")
    elif isinstance(value, dict) and isinstance(schema.get("additionalProperties"), dict):
        for name, one in value.items():
            out += problems(one, schema["additionalProperties"], f"{at}.{name}")
    if isinstance(value, list) and "items" in schema:
        for i, one in enumerate(value):
            out += problems(one, schema["items"], f"{at}[{i}]")
    return out


def event_problems(event):
    """Of a server event, by its type."""
    name = EVENTS.get(event.get("type"))
    return [f"there is no event {event.get('type')!r}"] if name is None else problems(event, SCHEMAS[name])
