"""Every example in the document, read from standard input, is valid under the schema beside it."""

import json
import sys

import jsonschema_rs

document = json.load(sys.stdin)
count = 0


def visit(node, place):
    global count
    if isinstance(node, list):
        for index, child in enumerate(node):
            visit(child, f"{place}/{index}")
    if not isinstance(node, dict):
        return
    if "schema" in node:
        examples = [node["example"]] if "example" in node else []
        examples += [example["value"] for example in node.get("examples", {}).values()]
        schema = {"allOf": [node["schema"]], "components": document["components"]}
        for example in examples:
            count += 1
            for error in jsonschema_rs.Draft202012Validator(schema).iter_errors(example):
                sys.exit(f"{place}: {error.message}")
    for name, child in node.items():
        visit(child, f"{place}/{name}")


visit(document, "#")
if not count:
    sys.exit("there is no example")
print(f"{count} examples are valid")
