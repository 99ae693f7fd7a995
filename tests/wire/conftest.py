"""Property tests here count examples, not milliseconds: the machine may be busy."""

from hypothesis import settings

settings.register_profile("pageferry", deadline=None)
settings.load_profile("pageferry")
