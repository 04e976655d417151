"A function is what its code means, in another process, under other flags, with another docstring"
import importlib,linecache,os,subprocess,sys
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache,partial
from pathlib import Path
import numpy as np,pytest,torch
from torch import nn
from fastai.basics import CrossEntropyLossFlat,DataLoader,DataLoaders,Learner,noop,set_seed
from fastai.callback.all import ProgressCallback
from fastai_lottery.all import LotteryCallback
from fastai_lottery.fits import last_lr
from fastai_lottery.identity import say,source_of,sources

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
    done = subprocess.run([sys.executable, '-W', 'ignore', *flags, '-c', run], capture_output=True, text=True, env=env,
                          cwd=tmp_path)
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
    for now in ('def g(w): return w\n', 'def f(w): return w+1\n'):    # the module is at work, and says what it was
        f.write_text(now)
        linecache.checkcache(str(f))
        assert source_of(scope['f']) is None

class Scorer:
    def __init__(self, k, layers=()): self.k,self.layers = k,layers
    def score(self, w_f): return w_f*self.k
    def __call__(self, w_f): return w_f*self.k

def renamed(name):
    def _f(o):
        o.__name__ = name
        return o
    return _f

@renamed('Scorer')
class Other(Scorer):
    def __call__(self, w_f): return w_f+self.k

@dataclass(slots=True)
class Rates:
    low:float
    layers:list = ()
    def __call__(self, w_f): return w_f*self.low

def around(v):
    def f(w_f): return w_f if v else -w_f
    return f

@lru_cache
def cached(w_f): return w_f
@renamed('cached')
@lru_cache
def cached_(w_f): return -w_f

values = dict(lists=([1],[2]), dicts=({'a':1},{'a':2}), sets=({1,2},{1,3}),
              tensors=(torch.ones(2),torch.zeros(2)), bytes_=(b'a',b'b'),
              complex_=(1j,2j), ranges=(range(3),range(4)),
              fractions=(Fraction(1,2),Fraction(1,3)), deques=(deque([1]),deque([2])),
              sparse=(torch.eye(2).to_sparse(),torch.zeros(2,2).to_sparse()), numbers=(np.float32(1),np.float32(2)),
              objects=(Scorer(1),Scorer(2)), held=(Scorer(1, ['a']),Scorer(1, ['b'])),
              code=(Scorer(1),Other(1)), slots=(Rates(1),Rates(2)),
              slotted=(Rates(1, [1]),Rates(1, [2])), methods=(Scorer(1).score,Scorer(2).score), caches=(cached,cached_))

@pytest.mark.parametrize('a,b', values.values(), ids=values)
def test_what_a_function_is_made_with_tells_it_from_another(a, b):
    assert say(a)!=say(b)
    assert say(around(a))!=say(around(b)) and say(partial(around, v=a))!=say(partial(around, v=b))
    assert say(a)==say(a) and say(around(a))==say(around(a))

def test_a_way_to_fit_of_ones_own_within_one_of_ours():
    def mine(learn, n_epoch): learn.fit(n_epoch)
    a = last_lr(mine)
    def mine(learn, n_epoch): learn.fit(n_epoch+1)
    assert say(a)!=say(last_lr(mine)) and say(last_lr(Learner.fit))=='last_lr(fit)'

beside = """
power = {power}
def helper(w): return {helper}
def f(w_f):
    return helper(w_f)**power if w_f.ndim else g(w_f)
def g(w_f): return f(w_f)
count = 0
def counting(w_f):
    global count
    count += 1
    return w_f
"""

def test_what_stands_beside_a_function_counts(tmp_path):
    "A number and a function that it reads, one that calls it again; not what it sets"
    said = []
    for i,(power,helper) in enumerate([(2,'w'), (2,'w'), (3,'w'), (2,'w+1')]):
        (f := tmp_path/f'beside_{i}.py').write_text(beside.format(power=power, helper=helper))
        exec(compile(f.read_text(), str(f), 'exec'), scope := {'__name__':f'beside_{i}'})
        said.append(say(scope['f']))
        was = say(scope['counting'])
        scope['counting'](1)
        assert say(scope['counting'])==was
    assert said[0]==said[1] and len(set(said))==3 and '# power = 2' in sources[said[0]]

def test_what_a_function_changes_counts_as_it_was():
    "Else a run that is taken up in the same process would not go on"
    seen = []
    def stop(rounds):
        seen.append(1)
        return len(seen)>3
    was = say(stop)
    stop([])
    assert say(stop)==was

def test_an_empty_cell_and_things_that_hold_each_other():
    def f(w_f): return later(w_f)
    assert say(f)
    def later(w_f): return f(w_f)
    a,b = Scorer(1, []),Scorer(2, [])
    a.layers.append(b)
    b.layers.append(a)
    assert say(later)==say(later) and say(a)!=say(b)

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
    with pytest.raises(ValueError,
                       match=r"(?s)criterion was 'mine .*- +return w_f.abs\(\).*\+ +return abs\(w_f\).*same=\['criterion'\]"):
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
