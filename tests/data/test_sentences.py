from postrain.data.sentences import sentences


def test_sentences_end_at_marks_before_white_space_and_at_lines():
    assert sentences(" One. Two!\n\nthree 1.5\n \nb ") == ["One.", "Two!", "three 1.5", "b"]
