"""The site's benchmark notices a figure that is missed, and serves pages as a host does."""

import gzip
import importlib.util
import json
import urllib.request
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("benchmark_site", Path(__file__).parents[1] / "benchmark_site.py")
benchmark_site = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(benchmark_site)


def answer(performance=1.0, seo=1.0, paint=700.0, sizes=(1000, 2000)):
    """Return the parts of Lighthouse's JSON that matter, with one failed audit."""
    categories = {name: {"score": 1.0, "auditRefs": []} for name in benchmark_site.LOWEST}
    categories["performance"]["score"] = performance
    categories["seo"] = {"score": seo, "auditRefs": [{"id": "meta-description", "weight": 1}]}
    audits = {
        "largest-contentful-paint": {"title": "Largest paint", "numericValue": paint, "score": 1.0},
        "network-requests": {
            "title": "Requests", "score": None, "details": {"items": [{"transferSize": size} for size in sizes]}
        },
        "meta-description": {"title": "No description", "score": seo if seo < 1 else 1.0},
    }  # fmt: skip
    return json.loads(json.dumps({"categories": categories, "audits": audits}))


def test_a_good_page_misses_nothing():
    found = benchmark_site.read_audit("index.html", answer())
    assert benchmark_site.missed(found, 1000) == []
    assert found.complaints == []
    assert found.transferred == 3000


@pytest.mark.parametrize(
    ("changes", "following", "words"),
    [
        ({"performance": 0.94}, None, "performance 94 < 95"),
        ({"seo": 0.9}, None, "seo 90 < 95"),
        ({"paint": 1501.0}, None, "largest paint 1501 ms > 1500 ms"),
        ({"sizes": (1_500_001,)}, None, "first load 1500001 bytes > 1500000"),
        ({}, 300_001, "next load 300001 bytes > 300000"),
    ],
)
def test_each_figure_that_is_missed_is_named(changes, following, words):
    assert benchmark_site.missed(benchmark_site.read_audit("a.html", answer(**changes)), following) == [words]


def test_what_cost_points_is_said():
    assert benchmark_site.read_audit("a.html", answer(seo=0.5)).complaints == ["No description (failed)"]


def test_text_is_served_compressed_and_pictures_as_they_are(tmp_path):
    (tmp_path / "index.html").write_text("<p>a</p>" * 500, encoding="utf-8")
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with benchmark_site.served(tmp_path) as address:
        with urllib.request.urlopen(f"{address}/", timeout=5) as page:
            content = page.read()
            assert page.headers["Content-Encoding"] == "gzip"
        with urllib.request.urlopen(f"{address}/a.png", timeout=5) as picture:
            assert picture.read() == b"\x89PNG"
    assert gzip.decompress(content) == b"<p>a</p>" * 500
    assert len(content) < 200
