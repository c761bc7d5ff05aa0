# SPDX-License-Identifier: MPL-2.0
"""Requests to the HTTP API that are held against openapi.json, which the broker serves."""

import json
import os
import re

from management import quoted
from private_broker import REPOSITORY

DESCRIBED = os.path.join(REPOSITORY, "priv", "www", "api", "delay-wheel")
with open(os.path.join(DESCRIBED, "openapi.json"), encoding="utf-8") as file:
    OPENAPI = json.load(file)

TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict,
         "array": list}


def resolved(schema):
    while "$ref" in schema:
        _, *names = schema["$ref"].split("/")
        schema = OPENAPI
        for name in names:
            schema = schema[name]
    return schema


def mismatches(value, schema, where="$"):
    """What keeps a value from being as the schema says: the part of JSON Schema that the file uses."""
    schema = resolved(schema)
    unknown = set(schema) - {"type", "minLength", "nullable", "oneOf", "enum", "properties", "required",
                             "additionalProperties", "minProperties", "maxProperties", "items", "minItems",
                             "maxItems", "minimum", "maximum", "maxLength", "pattern",
                             "description", "default"}
    assert not unknown, unknown
    if value is None and schema.get("nullable"):
        return
    if "oneOf" in schema:
        fits = [s for s in schema["oneOf"] if not list(mismatches(value, s))]
        if len(fits) != 1:
            yield f"{where}: {value!r} fits {len(fits)} of oneOf"
        return
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind])
                 or kind == "integer" and isinstance(value, bool)):
        yield f"{where}: {value!r} is no {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is none of {schema['enum']}"
    if kind == "object":
        known = schema.get("properties", {})
        for name in set(schema.get("required", [])) - set(value):
            yield f"{where}.{name} is missing"
        for name in value:
            if name in known:
                yield from mismatches(value[name], known[name], f"{where}.{name}")
            elif schema.get("additionalProperties") is False:
                yield f"{where}.{name} is not known"
    if kind == "array":
        for n, item in enumerate(value):
            yield from mismatches(item, schema["items"], f"{where}[{n}]")


def call(management, method, template, body=None, query="", **places):
    """The status and the answer of a documented request; fails unless both are as documented."""
    documented = OPENAPI["paths"][template][method.lower()]
    path = re.sub(r"\{(\w+)\}", lambda m: quoted(str(places[m.group(1)])), template)
    status, answer = management.request(method, path.lstrip("/") + query, body)
    described = resolved(documented["responses"][str(status)])
    if status != 401:
        content = described.get("content")
        assert (answer is None) == (content is None), (status, answer)
        if content:
            wrong = list(mismatches(answer, content["application/json"]["schema"]))
            assert not wrong, wrong
    if body is not None and status == 200:
        content = documented["requestBody"]["content"]["application/json"]
        assert not list(mismatches(body, content["schema"]))
    return status, answer
