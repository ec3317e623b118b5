"""The command line: one thin file per verb. A verb parses, calls the library and prints; it computes nothing."""

from ._main import VERBS, Verb, main

__all__ = ["VERBS", "Verb", "main"]
