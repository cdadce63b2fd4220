"""OpenAI's Responses API: its requests become chats, and its responses are written from the same parts."""
