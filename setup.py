"""Puts conf/ and sweep/, which lie beside the package in a checkout, into the package of a wheel."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """An editable install finds them in the checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for name in ("conf", "sweep"):
                copytree(name, Path(self.build_lib, "postrain", name), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConf})
