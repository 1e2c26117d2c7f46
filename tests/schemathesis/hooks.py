"""The document says what clients should send. Where it says `x-lenient`, anything else is taken too, so it is valid.
And some checks do not know the rules for paths (HTTP contract, section 2.1)."""

import schemathesis
from schemathesis.checks import CHECKS
from schemathesis.specs.openapi import checks

# Pairs outlive the service that they use, and a pair that is cleared stays at zero.
PAIRS = {
    "/api/v1/services/{serviceId}/usage",
    "/api/v1/services/{serviceId}/agents",
    "/api/v1/services/{serviceId}/agents/top",
    "/api/v1/usage/{agent}/{serviceId}",
}

# A service may have no metadata, and usage may be of a service that is not registered, so that nothing prices it.
OPTIONAL = {"/api/v1/services/{serviceId}/metadata", "/api/v1/billing/{agent}/{serviceId}"}

# Fixed names are no reserved words: a service may be named `bulk`, and its path has the methods of a service too.
FIXED_NAMES = {"/api/v1/services/bulk"}


@schemathesis.hook
def before_load_schema(context, raw_schema):
    accept_anything(raw_schema)


def accept_anything(node):
    if isinstance(node, dict):
        if node.get("x-lenient"):
            if "in" in node:
                node["schema"] = {"anyOf": [node["schema"], {"type": "string"}]}
            else:
                node["items"] = {"anyOf": [node["items"], {}]}
        for child in node.values():
            accept_anything(child)
    elif isinstance(node, list):
        for child in node:
            accept_anything(child)


# Exceptions of the configuration file do not reach the stateful phase and OPTIONS.
def except_on(paths, original):
    def check(ctx, response, case):
        return None if case.operation.path in paths else original(ctx, response, case)

    check.__name__ = original.__name__
    CHECKS.unregister(original.__name__)
    schemathesis.check(check)


except_on(PAIRS, checks.use_after_free)
except_on(OPTIONAL, checks.ensure_resource_availability)
except_on(FIXED_NAMES, checks.allow_header_conformance)
