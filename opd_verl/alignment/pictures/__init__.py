"""The pictures of an alignment: distributions, rankings, paths, and one question's tree."""
