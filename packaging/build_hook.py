"""Write clarad's version into what is built: `clarad/VERSION`, which `clarad.version` reads."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class VersionHook(BuildHookInterface):
    """A hook of Hatch's for the wheel and the source distribution."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put VERSION into the build. An editable install has none: the checkout asks git."""
        if version == "editable":
            return
        built = self.metadata.version
        if built.endswith("+unknown"):
            self.app.display_warning(f"no git repository here, so the version is {built}")
        self._directory = TemporaryDirectory()
        path = Path(self._directory.name, "VERSION")
        path.write_text(f"{built}\n")
        build_data["force_include"][f"{path}"] = "clarad/VERSION"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the file that `initialize` has written."""
        if version != "editable":
            self._directory.cleanup()
