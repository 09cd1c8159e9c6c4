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
def test_the_message_tells_what_cannot_be_used_the_problem_and_the_cure(kind):
    error = kind("scan.nii", "it is empty", "export it again")
    assert str(error) == "cannot use scan.nii\n  problem: it is empty\n  fix:     export it again"
    assert (error.what, error.problem, error.fix) == ("scan.nii", "it is empty", "export it again")


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_a_value_error_that_a_caller_can_catch_as_input_error(kind):
    assert issubclass(kind, InputError)
    assert issubclass(kind, ValueError)


@pytest.mark.parametrize("duplicate", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickle_and_copy(kind, duplicate):
    error = kind("scan.nii", "it is empty", "export it again")
    again = duplicate(error)
    assert type(again) is kind
    assert str(again) == str(error)
    assert (again.what, again.problem, again.fix) == (error.what, error.problem, error.fix)


def test_an_error_in_a_worker_of_a_data_loader_reaches_the_user_as_it_was():
    with pytest.raises(InputError) as caught:
        list(DataLoader(Broken(), num_workers=1))
    error = caught.value
    assert str(error).splitlines()[0].endswith("case.nii")
    assert (error.problem, error.fix) == ("it is empty", "restore it")
