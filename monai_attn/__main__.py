# SPDX-License-Identifier: Apache-2.0
"""``python -m monai_attn`` is the command ``monai-attn``."""

from monai_attn.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
