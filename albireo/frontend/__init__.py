"""The frontend process: HTTP on one side, the coordinator's socket on the other.

A request:  http_protocol -> app -> error_boundary, auth -> completions | chat -> body -> decode (json_guard, requests)
            -> tokenizer | chat_prompt (chat_template, control_tokens, deadline) -> sampling -> engine_client
Its tokens: socket_reader -> engine_client -> generation (detokenizer, stop_strings) -> output -> respond (formats)

server.py holds the process together; service.py is what every route works with.
"""
