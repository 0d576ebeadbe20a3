"""ToxiCN."""

from __future__ import annotations

HEADER = (
    "platform,topic,content,toxic,toxic_one_hot,toxic_type,toxic_type_one_hot,expression,"
    "expression_one_hot,target,length,num_attacked\n"
)
ROW = 'zhihu,region,今天喝茶,1,"[0, 1]",1,"[1, 0, 0]",2,"[0, 0, 1, 0]","[0, 1, 0, 0, 0, 0]",4,1\n'


def test_nested_labels_become_lists(ingest, write) -> None:
    """BOM in the header, Chinese text, lists in quotes: as the published file has them."""
    uri = write("ToxiCN_1.0.csv", b"\xef\xbb\xbf" + (HEADER + ROW).encode())
    outcome = ingest(format="toxicn", uri=uri)
    assert outcome.texts == ["今天喝茶"]
    assert outcome.rows[0]["is_toxic"] is True
    assert outcome.rows[0]["language"] == "zh"
    assert outcome.attributes() == {
        "platform": "zhihu",
        "topic": "region",
        "toxic": 1,
        "toxic_one_hot": [0, 1],
        "toxic_type": 1,
        "toxic_type_one_hot": [1, 0, 0],
        "expression": 2,
        "expression_one_hot": [0, 0, 1, 0],
        "target": [0, 1, 0, 0, 0, 0],
        "length": 4,
        "num_attacked": 1,
    }


def test_cells_that_are_no_lists_stay_text(ingest, write) -> None:
    """What looks like a list but is none, or is code, is kept as it is and never evaluated."""
    cells = ['"[0, 1"', '"[print(1)]"', '"[' + "(" * 3000 + ']"', "[]"]
    rows = "".join(f"茶{i},0,{cell}\n" for i, cell in enumerate(cells))
    outcome = ingest(format="toxicn", uri=write("t.csv", "content,toxic,target\n" + rows))
    targets = [outcome.attributes(index)["target"] for index in range(4)]
    assert targets == ["[0, 1", "[print(1)]", "[" + "(" * 3000 + "]", []]


def test_a_set_language_overrides_chinese(ingest, write) -> None:
    """The settings may say that the posts are in something else."""
    uri = write("t.csv", "content,toxic\nhao,0\n")
    assert ingest(format="toxicn", uri=uri).rows[0]["language"] == "zh"
    assert ingest(format="toxicn", uri=uri, language="yue").rows[0]["language"] == "yue"
