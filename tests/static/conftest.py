# SPDX-License-Identifier: MPL-2.0
"""Archives to make a release of: the one that was built before, and for later series that with another .app."""

import glob
import os
import re
import shutil
import zipfile

import pytest

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILT = glob.glob(os.path.join(TOP, "dist", "3.10", "*.ez"))


@pytest.fixture(scope="session")
def built():
    assert len(BUILT) == 1, "make dist-3.10 comes first"
    return BUILT[0]


@pytest.fixture(scope="session")
def both(built, tmp_path_factory):
    """A directory as `dist/`, with both archives."""
    if "+" in os.path.basename(built):
        pytest.skip("the libraries of other machines are not built here: make deps-release")
    place = tmp_path_factory.mktemp("archives")
    first, second = place / "3.10", place / "3.13-4.x"
    first.mkdir()
    second.mkdir()
    shutil.copy(built, first)
    with zipfile.ZipFile(built) as old, \
            zipfile.ZipFile(second / os.path.basename(built), "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith(".app"):
                data = re.sub(rb'\{broker_version_requirements,\s*\["3\.10\.0"\]\}',
                              b"{broker_version_requirements,[]}", data)
                data = re.sub(rb'\{known_series,\s*\["3\.10"\]\}',
                              b'{known_series,["3.13","4.0","4.1","4.2","4.3"]}', data)
            new.writestr(entry, data)
    return place
