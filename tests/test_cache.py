from __future__ import annotations

from mirage_env.cache import Cache


def test_the_values_used_last_stay() -> None:
    cache: Cache[str] = Cache(10)
    cache.put("a", "A", 4)
    cache.put("b", "B", 4)
    assert cache.get("a") == "A"
    cache.put("c", "C", 4)  # b was not used for longest
    assert cache.get("b") is None and cache.get("a") == "A" and cache.get("c") == "C"
    assert (len(cache), cache.nbytes) == (2, 8)
    cache.put("a", "AA", 6)
    assert cache.get("a") == "AA" and cache.nbytes == 10
    cache.put("d", "D", 11)
    assert cache.get("d") is None and len(cache) == 2
    cache.put("a", "AAA", 11)
    assert cache.get("a") is None and cache.nbytes == 4
