"""Build hook for the C extensions; everything else is in pyproject.toml.

cffi compiles them at build time ("API mode") and offers no way to say so in pyproject.toml.
"""

from setuptools import setup

setup(
    cffi_modules=[
        "native/build_native.py:ffibuilder",
        "native/build_native.py:tls_ffibuilder",
    ]
)
