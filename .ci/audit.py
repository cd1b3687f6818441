#!/usr/bin/env python3
"""Known vulnerabilities and licences of what is installed beside segdrop.

    python -m venv fresh && fresh/bin/pip install ".[test]" pip-audit && fresh/bin/python .ci/audit.py

Looks at the environment that it runs in: what segdrop needs and what that needs, with extras, as far as installed.
Exits with 1 where a package has a known vulnerability, or a licence that is unknown or copyleft. Vulnerabilities are
asked of PyPI by pip-audit; where it cannot be reached, that is said, and how many packages were looked up.
"""

import importlib.metadata
import json
import re
import subprocess
import sys

from packaging.requirements import Requirement

# As metadata and classifiers say them, in lower case.
PERMISSIVE = {
    *("0bsd", "bsd", "bsd license", "bsd-2-clause", "bsd-3-clause", "3-clause bsd license", "new bsd license"),
    *("apache 2.0", "apache-2.0", "apache license 2.0", "apache license, version 2.0", "apache software license"),
    *("mit", "mit license", "the mit license", "mit-0", "mit-cmu", "hpnd", "isc", "isc license (iscl)", "zlib"),
    *("psf-2.0", "python-2.0", "python software foundation license", "cc0-1.0", "public domain", "unlicense"),
}
# Copyleft of files or libraries, which asks nothing of who imports them as they are.
IMPORTED_UNCHANGED = {"certifi": "MPL-2.0", "tqdm": "MPL-2.0 AND MIT", "psycopg": "LGPL", "psycopg-binary": "LGPL"}
# Read in the package's own licence file, where its metadata say nothing.
READ = {"namex": "Apache-2.0"}


def installed() -> dict[str, importlib.metadata.Distribution]:
    """What segdrop requires, and what that does, by normal names."""
    found, left = {}, ["segdrop"]
    while left:
        for line in importlib.metadata.distribution(left.pop()).requires or ():
            name = re.sub("[-_.]+", "-", Requirement(line).name).lower()
            if name in found or name == "segdrop":
                continue
            try:
                found[name] = importlib.metadata.distribution(name)
                left.append(name)
            except importlib.metadata.PackageNotFoundError:  # of an extra, or of another system
                continue
    return dict(sorted(found.items()))


def licence_of(name: str, package: importlib.metadata.Distribution) -> str:
    """What a package's metadata say: an expression first, then classifiers, then a line of text; "" where nothing."""
    told = package.metadata
    kinds = [line.split(" :: ") for line in told.get_all("Classifier") or () if line.startswith("License :: ")]
    text = (told.get("License") or "").strip()
    line = text if "\n" not in text and len(text) < 80 and text.upper() != "UNKNOWN" else ""
    return READ.get(name) or told.get("License-Expression") or " OR ".join(k[-1] for k in kinds if len(k) > 2) or line


def is_permissive(licence: str) -> bool:
    """Whether one of the licences joined by OR is, all of whose parts joined by AND are."""
    choices = [re.split(r"\s+AND\s+", choice) for choice in re.split(r"\s+OR\s+", licence)]
    return any(all(part.strip().lower() in PERMISSIVE for part in parts) for parts in choices)


def check_licences() -> bool:
    packages = installed()
    rows = {name: (package.version, licence_of(name, package)) for name, package in packages.items()}
    refused = []
    for name, (version, licence) in rows.items():
        told = "permissive" if is_permissive(licence) else "imported unchanged" if name in IMPORTED_UNCHANGED else ""
        refused += [] if told else [name]
        print(f"{name:28}{version:20}{licence or 'unknown':52}{told or 'REFUSED'}")
    print(f"\nLicences: {len(rows)} packages, {len(refused)} refused{': ' if refused else ''}{', '.join(refused)}")
    return not refused


def check_vulnerabilities() -> bool:
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        looked_up = [one for one in json.loads(done.stdout)["dependencies"] if "vulns" in one]
    except (subprocess.TimeoutExpired, ValueError):
        looked_up = []
    if not looked_up:
        print("Vulnerabilities: NOT MEASURED (pip-audit is not installed, or its service cannot be reached)")
        return True
    found = [f"{one['name']} {one['version']}: {vuln['id']}" for one in looked_up for vuln in one["vulns"]]
    print(f"Vulnerabilities: {len(looked_up)} packages looked up, {len(found)} known", *found, sep="\n  ")
    return not found


if __name__ == "__main__":
    sys.exit(not all([check_licences(), check_vulnerabilities()]))
