# SPDX-License-Identifier: Apache-2.0
"""MONAI bundles of the papers; installed as ``monai_attn.bundles``."""
