"""Will it move? The question for one container or all (question.py), and the answer that is kept (keeper.py).

What is asked is what a move asks: preflight here, admission there. Nothing is touched, nothing reserved.
"""
