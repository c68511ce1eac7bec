"""Classes of ImageNet under unlike names; the ids here are of public knowledge."""

from monoeval.data.imagenet import in_words, same_classes

POSITIONS = [str(i) for i in range(1000)]


def test_equal_notations_match_by_name() -> None:
    assert same_classes(["cat", "dog"], ["dog", "eel"]) == {"dog": ("dog",)}
    assert same_classes(["n01440764", "n01443537"], ["n01443537"]) == {"n01443537": ("n01443537",)}
    assert same_classes(["7", "9"], ["9", "10"]) == {"9": ("9",)}  # digits are no positions in ImageNet


def test_words_match_wordnet_ids() -> None:
    words = ["tench, Tinca tinca", "goldfish, Carassius auratus", "a class of my own"]
    assert same_classes(words, ["n01443537", "n01440764", "n99999999"]) == {
        "n01443537": ("goldfish, Carassius auratus",),
        "n01440764": ("tench, Tinca tinca",),
    }
    assert same_classes(["n01440764", "n01443537"], words) == {
        words[0]: ("n01440764",),
        words[1]: ("n01443537",),
    }


def test_a_text_tower_reads_words() -> None:
    assert in_words(["n01440764", "n99999999"]) == ("tench, Tinca tinca", "n99999999")
    assert in_words(POSITIONS)[1] == "goldfish, Carassius auratus"
    assert in_words(["1", "cat"]) == ("1", "cat")


def test_positions_match_wordnet_ids_only_where_all_thousand_are_there() -> None:
    found = same_classes(["n01440764", "n15075141"], POSITIONS)
    assert found == {"0": ("n01440764",), "999": ("n15075141",)}
    assert same_classes(["n01440764", "n15075141"], POSITIONS[:-1]) == {}


def test_words_of_two_classes_name_neither() -> None:
    # the bird (n02012849) and the machine (n03126707)
    assert same_classes(["crane", "goldfish, Carassius auratus"], ["n02012849", "n03126707"]) == {}
