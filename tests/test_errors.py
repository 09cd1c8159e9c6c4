# SPDX-License-Identifier: Apache-2.0
import copy
import pickle

import pytest
from torch.utils.data import DataLoader, Dataset

from monai_attn.errors import ConfigError, DataError, InputError

KINDS = [InputError, DataError, ConfigError]


class Broken(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        raise DataError("case.nii", "it is empty", "restore it")


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_tells_what_cannot_be_used_the_problem_and_the_fix_and_survives_pickle_and_copy(kind):
    error = kind("scan.nii", "it is empty", "export it again")
    assert isinstance(error, InputError)
    assert isinstance(error, ValueError)
    for again in (error, pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert str(again) == "cannot use scan.nii\n  problem: it is empty\n  fix:     export it again"
        assert (again.what, again.problem, again.fix) == ("scan.nii", "it is empty", "export it again")


def test_an_error_in_a_worker_of_a_data_loader_reaches_the_user_as_it_was():
    with pytest.raises(InputError) as caught:
        list(DataLoader(Broken(), num_workers=1))
    error = caught.value
    assert str(error).splitlines()[0].endswith("case.nii")
    assert (error.problem, error.fix) == ("it is empty", "restore it")
