from __future__ import annotations

from mlflow_exim_plugin.schema.objects import by_number


def test_ids_sort_by_number_and_no_text_breaks_it() -> None:
    # "²" is a digit to str.isdigit and no number to int: a hostile folder may be called so.
    assert sorted(["10", "9", "²", "name", ""], key=by_number) == ["", "name", "²", "9", "10"]
