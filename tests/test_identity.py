"A function is what its code means, in another process, under other flags, with another docstring"
import importlib,os,subprocess,sys
from pathlib import Path
import pytest,torch
from torch import nn
from fastai.basics import CrossEntropyLossFlat,DataLoader,DataLoaders,Learner,noop,set_seed
from fastai.callback.all import ProgressCallback
from fastai_lottery.all import LotteryCallback
from fastai_lottery.identity import say,source_of

root = Path(__file__).resolve().parent.parent

plain = """def f(w_f, kind='l1'):
    'Scores'
    assert kind
    return w_f.abs() if kind in {'l1','l2','linf','fro','nuc'} else w_f
"""
reworded = """


def f(w_f:list, kind='l1')->list:
    'Scores of weights'
    assert kind, w_f    # any
    return (w_f.abs() if kind in {'nuc','l2','linf',
                                  'fro','l1'} else w_f)
"""
others = plain.replace("'l2'", "'l3'"),plain.replace("kind='l1'", "kind='l2'")

def said_here(tmp_path, monkeypatch):
    "What this process says of the function `f` of each of those codes, and of the first where there is no source"
    monkeypatch.syspath_prepend(str(tmp_path))
    for i,code in enumerate((plain, reworded, *others)): (tmp_path/f'mine_{i}.py').write_text(code)
    exec(plain, here := {'__name__':'__main__'})
    return [str(say(g)) for g in (*[importlib.import_module(f'mine_{i}').f for i in range(4)], here['f'])]

def said(tmp_path, *flags, seed):
    "What a new process says of them"
    run = f"""from fastai_lottery.identity import say
import mine_0,mine_1,mine_2,mine_3
exec({plain!r})
print(*[say(g) for g in (mine_0.f, mine_1.f, mine_2.f, mine_3.f, f)], sep='|')"""
    env = dict(os.environ, PYTHONHASHSEED=seed, PYTHONPATH=f'{tmp_path}{os.pathsep}{root}', PYTHONDONTWRITEBYTECODE='1')
    done = subprocess.run([sys.executable, '-W', 'ignore', *flags, '-c', run], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode==0, done.stderr
    return done.stdout.strip().splitlines()[-1].split('|')

def test_the_same_in_every_process(tmp_path, monkeypatch):
    base = said_here(tmp_path, monkeypatch)
    assert base[0]==base[1] and len(set(base[:4]))==3
    assert said(tmp_path, seed='1')==base    # without a source, too: sets have an order of their own
    assert said(tmp_path, '-OO', seed='2')[:4]==base[:4]

pair = [lambda w: w+1, lambda w: w+2, lambda w: w+1]
def nested(k): return lambda w: w*k

def deep(w):
    def inner(x): return x in {'a','b'}
    return inner(w)

def test_functions_are_told_apart():
    assert len({say(f) for f in pair})==2 and say(pair[0])==say(pair[2])
    assert say(nested(2))==say(nested(2))!=say(nested(3))
    assert source_of(pair[1])=='lambda w: w + 2' and source_of(deep).startswith('def deep')
    def deep_(w):
        def inner(x): return x in {'a','c'}
        return inner(w)
    deep_.__name__ = 'deep'
    assert say(deep_)!=say(deep)

def test_constants_of_a_lambda_count_without_source():
    a,b = (eval(f"lambda kind: kind=='{k}'") for k in ('l1','l2'))
    assert source_of(a) is None and say(a)!=say(b)

def test_a_module_of_ones_own_is_not_taken_for_torch(tmp_path):
    for n,v in (('torch_mine',1), ('torch_yours',2)): (tmp_path/f'{n}.py').write_text(f'def f(w): return w*{v}\n')
    sys.path.insert(0, str(tmp_path))
    try: import torch_mine,torch_yours
    finally: sys.path.remove(str(tmp_path))
    assert say(torch_mine.f)!=say(torch_yours.f)

def test_a_file_that_was_edited_since_is_not_believed(tmp_path):
    f = tmp_path/'edited.py'
    f.write_text('def f(w): return w\n')
    scope = {}
    exec(compile(f.read_text(), str(f), 'exec'), scope)
    f.write_text('def g(w): return w\n')
    assert source_of(scope['f']) is None

# --- in a run's folder

def learner(dtype=None):
    "A Learner on sixteen rows"
    set_seed(0)
    rows = list(zip(torch.randn(16,4), torch.randint(0,2,(16,))))
    if dtype: rows = [(x.to(dtype),y) for x,y in rows]
    net = nn.Linear(4,2) if dtype is None else nn.Linear(4,2, dtype=dtype)
    dls = DataLoaders(DataLoader(rows, bs=8), DataLoader(rows, bs=8), device='cpu')
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), cbs=LotteryCallback())
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def play(path, criterion, dtype=None, **kw):
    return learner(dtype).fit_lottery(1, rounds=1, seed=1, criterion=criterion, path=path, **kw)

def test_another_function_is_shown_and_may_be_vouched_for(tmp_path):
    def mine(w_f): return w_f.abs()
    rs = play(tmp_path, mine)
    def mine(w_f): return abs(w_f)
    with pytest.raises(ValueError, match=r"(?s)criterion was 'mine .*- +return w_f.abs\(\).*\+ +return abs\(w_f\).*same=\['criterion'\]"):
        play(tmp_path, mine)
    again = play(tmp_path, mine, same='criterion')
    assert [r['mask_hash'] for r in again]==[r['mask_hash'] for r in rs]
    play(tmp_path, mine)    # it was said once
    with pytest.raises(ValueError, match="`same` should name settings"): play(tmp_path, mine, same='criteria')
    with pytest.raises(ValueError, match='seed was'): learner().fit_lottery(1, seed=2, criterion=mine, path=tmp_path)

def test_a_run_does_not_go_on_in_another_precision(tmp_path):
    play(tmp_path, 'large_final')
    with pytest.raises(ValueError, match=r"dtypes was \['float32'\] and is now \['float64'\]"):
        play(tmp_path, 'large_final', torch.float64)
