"""A value for a schema of the contract. No tests."""

from typing import Any

from protocol import checkpoint

BY_PATTERN = {
    r"^[0-9a-f]{64}$": "8f" * 32,
    r"^([0-9a-f]{64})?$": "8f" * 32,
    r"^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$": "10.1.0.2/24",
    r"^m-[0-9a-f]{16}$": "m-0123456789abcdef",
    r"^e-[0-9a-f]{16}$": "e-0123456789abcdef",
    r"^[0-9a-f]{12}$": "5f0c2a9be771",
    r"^[0-9a-f]{16}$": "0123456789abcdef",
    checkpoint.STORE: "oci:registry:5000/name",
}


def sample(schema: dict[str, Any], definitions: dict[str, Any]) -> Any:
    """A value for a schema, with every field set."""
    if "$ref" in schema:
        return sample(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return sample(schema["anyOf"][0], definitions)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    match schema.get("type"):
        case "object":
            return {name: sample(one, definitions) for name, one in schema.get("properties", {}).items()}
        case "array":
            return [sample(schema["items"], definitions)] if "items" in schema else []
        case "string":
            return "2025-01-01T12:00:00Z" if "format" in schema else BY_PATTERN.get(schema.get("pattern", ""), "abc")
        case "integer" | "number":
            return 1
        case "boolean":
            return True
        case _:
            return None
