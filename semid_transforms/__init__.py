"""The Beam library: a pure function and a thin PTransform twin per file."""

from semid_transforms import coders

coders.register()  # before any pipeline is built or any worker decodes an element
