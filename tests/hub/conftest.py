"""The tests of the Hub itself use it the way all others do."""

from .fixtures import hub as hub
