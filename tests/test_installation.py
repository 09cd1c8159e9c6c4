# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# what setup.cfg names in its extras only
OPTIONAL = ("PIL", "fire", "h5py", "jsonschema", "matplotlib", "mlflow", "requests", "scipy", "tensorboard")
IMPORT_ALL = f"""
import importlib, pkgutil, sys
for name in {OPTIONAL}:
    sys.modules[name] = None
import monai_attn
for module in pkgutil.walk_packages(monai_attn.__path__, "monai_attn."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def test_every_module_is_imported_without_what_is_optional():
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=Path(__file__).parents[1], stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode()[-500:]
