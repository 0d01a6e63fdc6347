from __future__ import annotations

import pytest

from raystill.losses.balance import TermBalance


def test_the_kd_term_is_brought_to_the_cross_entropys_magnitude() -> None:
    balance = TermBalance()
    assert balance.kd_factor == 1.0
    for _ in range(10):
        balance.update(ce=4.0, kd=0.5)
    assert balance.kd_factor == pytest.approx(8.0)


def test_it_follows_slowly_and_never_far() -> None:
    balance = TermBalance()
    for _ in range(100):
        balance.update(1.0, 1.0)
    balance.update(1.0, 100.0)
    assert 0.3 < balance.kd_factor < 0.4
    for _ in range(2000):
        balance.update(1.0, 1e-9)
    assert balance.kd_factor == 1e3


def test_what_a_checkpoint_holds_continues_exactly() -> None:
    one = TermBalance()
    one.update(2.0, 1.0)
    other = TermBalance(**vars(one))
    one.update(3.0, 1.0)
    other.update(3.0, 1.0)
    assert one == other


def test_terms_of_nothing_change_nothing() -> None:
    balance = TermBalance()
    balance.update(0.0, 1.0)
    assert balance.kd_factor == 1.0
