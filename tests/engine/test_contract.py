"""A contract says the same after a round trip, and nothing but a contract is read as one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cervix_engine.contract import SIPAKMED_CLASSES, Category, ModelContract, OperatingPoint, TileClass, TileStatistic
from cervix_engine.errors import ContractError

Validate = Callable[[str, Any], None]
Mutants = Callable[[Any], list[tuple[str, Any]]]

NAMES = st.from_regex(r"[A-Za-z0-9_äß][A-Za-z0-9_ä-]{0,12}", fullmatch=True)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def contracts(draw: st.DrawFn) -> ModelContract:
    names = draw(st.lists(NAMES, min_size=2, max_size=6, unique=True))
    categories: st.SearchStrategy[Category] = st.sampled_from(get_args(Category))
    statistics = draw(st.lists(st.tuples(st.text(min_size=1), st.lists(FINITE, min_size=3, max_size=3).map(sorted))))
    return ModelContract(
        classes=tuple(TileClass(name, draw(st.text(min_size=1)), draw(categories)) for name in names),
        input_size=draw(st.tuples(st.integers(1, 4096), st.integers(1, 4096))),
        exif_policy=draw(st.sampled_from(["ignore", "apply"])),
        temperature=draw(st.floats(min_value=0, exclude_min=True, allow_infinity=False)),
        tile_statistics=tuple(TileStatistic(name, *values) for name, values in statistics),
    )


@given(contracts())
def test_a_contract_survives_json(contract: ModelContract) -> None:
    assert ModelContract.from_json(json.loads(json.dumps(contract.to_json()))) == contract


@given(contracts())
def test_every_contract_fits_the_schema(validate: Validate, contract: ModelContract) -> None:
    validate("contract", contract.to_json())


def test_a_contract_survives_a_file(tmp_path: Path, contract: ModelContract) -> None:
    contract.save(tmp_path / "contract.json")
    assert ModelContract.load(tmp_path / "contract.json") == contract


def test_sipakmeds_classes_have_their_published_categories() -> None:
    contract = ModelContract(SIPAKMED_CLASSES)
    assert contract.class_names == ("cervix_dyk", "cervix_koc", "cervix_mep", "cervix_pab", "cervix_sfi")
    assert [item.category for item in contract.classes] == ["abnormal", "abnormal", "benign", "normal", "normal"]
    assert contract.input_size == (224, 224)
    assert contract.exif_policy == "ignore"


def test_a_contract_cannot_be_changed(contract: ModelContract) -> None:
    with pytest.raises(FrozenInstanceError):
        contract.temperature = 2.0  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        contract.classes[0].name = "other"  # type: ignore[misc]
    assert hash(contract) == hash(replace(contract))


def test_every_change_of_its_json_is_refused(contract: ModelContract, validate: Validate, mutants: Mutants) -> None:
    changed = mutants(contract.to_json())
    assert len(changed) > 40
    accepted = []
    for what, document in changed:
        with pytest.raises(jsonschema.ValidationError):
            validate("contract", document)
        try:
            ModelContract.from_json(document)
        except ContractError:
            continue
        accepted.append(what)
    assert accepted == []


@pytest.mark.parametrize("document", [None, [], [1, 2], "contract", 5, {}, {"schema": "cervix/contract/2"}])
def test_other_json_is_refused(tmp_path: Path, document: Any) -> None:
    (tmp_path / "contract.json").write_text(json.dumps(document))
    with pytest.raises(ContractError, match="schema"):
        ModelContract.load(tmp_path / "contract.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"\x89PNG\r\n"])
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "contract.json").write_bytes(content)
    with pytest.raises(ContractError, match="cannot read the contract"):
        ModelContract.load(tmp_path / "contract.json")


def test_a_missing_file_is_a_contract_error(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"cannot read the contract contract\.json"):
        ModelContract.load(tmp_path / "contract.json")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"channel_order": "BGR"}, "channel_order 'BGR'"),
        ({"layout": "NCHW"}, "layout 'NCHW'"),
        ({"interpolation": "bicubic"}, "interpolation 'bicubic'"),
        ({"exif_policy": "rotate"}, "exif_policy 'rotate'"),
        ({"input_size": (0, 224)}, "input_size"),
        ({"input_size": (224, 4097)}, "input_size"),
        ({"input_size": (224,)}, "input_size"),
        ({"input_size": (224, 224, 3)}, "input_size"),
        ({"input_size": (224.0, 224)}, "input_size"),
        ({"input_size": (True, True)}, "input_size"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"classes": ()}, "at least two"),
        ({"classes": SIPAKMED_CLASSES[:1]}, "at least two"),
        ({"classes": SIPAKMED_CLASSES[:1] * 2}, "all different"),
    ],
)
def test_values_that_the_engine_does_not_implement(contract: ModelContract, change: Any, reason: str) -> None:
    with pytest.raises(ContractError, match=reason):
        replace(contract, **change)


@pytest.mark.parametrize(
    "name", ["", "with space", "comma,", "new\nline", "trailing\n", "a/b", "=1+1", "-lead", "a.b", "%"]
)
def test_class_names_that_would_break_a_column(name: str) -> None:
    with pytest.raises(ContractError, match="class name"):
        TileClass(name, "Display", "normal")


def test_a_class_needs_a_known_category_and_a_display_name() -> None:
    with pytest.raises(ContractError, match="category 'malignant'"):
        TileClass("a", "A", "malignant")  # type: ignore[arg-type]
    with pytest.raises(ContractError, match="display name"):
        TileClass("a", "", "normal")


@pytest.mark.parametrize(
    "values", [(2.0, 1.0, 3.0), (1.0, 3.0, 2.0), (float("nan"), 1.0, 2.0), (0.0, 1.0, float("inf"))]
)
def test_a_statistic_is_ordered_and_finite(values: tuple[float, float, float]) -> None:
    with pytest.raises(ContractError, match="height_px"):
        TileStatistic("height_px", *values)


def test_an_operating_point_is_an_optional_key(contract: ModelContract, validate: Callable[[str, Any], None]) -> None:
    assert "operating_point" not in contract.to_json()
    decided = replace(contract, operating_point=OperatingPoint(0.2, 0.5, 0.05, 0.98))
    document = json.loads(json.dumps(decided.to_json()))
    validate("contract", document)
    assert ModelContract.from_json(document) == decided
    assert OperatingPoint(0.2, review_within=0.3).review_band == (-0.1, 0.5)
    for broken in ({**document["operating_point"], "more": 1}, {"review_below": 0.5}, None, 0.2):
        with pytest.raises(ContractError):
            ModelContract.from_json({**document, "operating_point": broken})


@pytest.mark.parametrize("at", [0, 1.1, -0.1, math.nan, True, "0.5", 0.1234567])
def test_an_operating_point_is_a_share_of_six_digits(at: Any) -> None:
    with pytest.raises(ContractError, match="abnormal_at"):
        OperatingPoint(at)
