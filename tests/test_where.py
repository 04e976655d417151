"Where things are written, by whom, and in which encoding"
import os,subprocess,sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent

def ran(*args, stdin=None, cwd=None, **env):
    "A command in a process of its own"
    env = dict(os.environ, PYTHONPATH=str(root), PYTHONWARNINGS='ignore', **env)
    return subprocess.run([sys.executable, '-W', 'ignore', *map(str, args)], input=stdin, capture_output=True, text=True, env=env, cwd=cwd)

script = "from fastai_lottery.all import *\nfor o in play('one-shot-tiny', 'out', replicates=1, jobs=1): pass\n"

def test_a_script_without_a_guard_is_told_so(tmp_path):
    (tmp_path/'a.py').write_text(script)
    last = ran('a.py', cwd=tmp_path).stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: play() was called while a process imported your script: call it under `if __name__=='__main__':`")

def test_a_script_from_stdin_is_told_so(tmp_path):
    done = ran('-', stdin=script, cwd=tmp_path)
    assert "this one, '<stdin>', is no file: save it as one" in done.stderr and not (tmp_path/'out').exists()
