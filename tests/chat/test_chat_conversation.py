from albireo.chat.conversation import Conversation


def test_a_conversation_sends_the_system_message_and_all_turns() -> None:
    conversation = Conversation("be brief")
    conversation.ask("one")
    conversation.answer("1")
    conversation.ask("two")
    assert [message["role"] for message in conversation.messages()] == ["system", "user", "assistant", "user"]
    assert conversation.messages()[2]["content"] == "1"


def test_a_question_without_an_answer_is_not_kept() -> None:
    conversation = Conversation()
    conversation.ask("one")
    conversation.answer(" \n")
    assert conversation.messages() == []


def test_taking_back_drops_the_last_question_with_its_answer() -> None:
    conversation = Conversation("be brief")
    for question, answer in (("one", "1"), ("two", "2")):
        conversation.ask(question)
        conversation.answer(answer)
    assert conversation.take_back() == "two"
    assert [message["content"] for message in conversation.messages()] == ["be brief", "one", "1"]
    assert conversation.take_back() == "one"
    assert conversation.take_back() is None


def test_clearing_keeps_the_system_message() -> None:
    conversation = Conversation("be brief")
    conversation.ask("one")
    conversation.clear()
    assert [message["role"] for message in conversation.messages()] == ["system"]
