"""Build hook for the C extension; everything else is in pyproject.toml.

cffi compiles the extension at build time ("API mode") and offers no way to say so in pyproject.toml.
"""

from setuptools import setup

setup(cffi_modules=["native/build_native.py:ffibuilder"])
