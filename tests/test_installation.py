# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

# what setup.cfg names in its extras only
OPTIONAL = ("PIL", "fire", "h5py", "jsonschema", "matplotlib", "mlflow", "requests", "scipy", "tensorboard")
IMPORT_ALL = f"""
import importlib, pkgutil, socket, sys
for name in {OPTIONAL}:
    sys.modules[name] = None
def refuse(*args, **kwargs):
    raise AssertionError(f"the network is used: {{args}}")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
import monai_attn
for module in pkgutil.walk_packages(monai_attn.__path__, "monai_attn."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def test_every_module_is_imported_without_what_is_optional_and_without_a_network():
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr[-500:]
