"""The Beam library: a pure function and a thin PTransform twin per file."""
