"""Cost that grows as the work grows: times over several sizes, ratios to a named peer from the same run, and the exponent.
Each benchmark prints a table and a line that says whether it grows as it should"""
import math,time
import numpy as np
import torch
from common import interleave,show,sized,tiny
from bench_import import fresh,importing

def exponent(sizes, secs):
    "Slope of log(seconds) over log(size), by least squares"
    return np.polyfit(np.log(sizes), np.log(secs), 1)[0] if len(sizes)>1 else math.nan

def growth(title, sizes, arms, most, slope=1.05, repeats=5, unit='items'):
    """Time `arms(size)`, `{name: function}` of ours and then of the peer, A B A B, at each of `sizes`; a function
    may return its own seconds. As it should: the exponent of ours is at most `slope`, its ratio to the peer at the
    largest size at most `most`"""
    def ms(f):
        t = time.perf_counter()
        own = f()
        return 1000*(own if isinstance(own, float) else time.perf_counter()-t)
    rows = [interleave({k:lambda f=f: ms(f) for k,f in arms(n).items()}, repeats) for n in sizes]
    ours,peer = rows[0]
    print(f'\n{title}\n  {unit:>14} {ours:>22} {peer:>22}      ratio')
    for n,r in zip(sizes,rows):
        print(f'  {n:14,} {r[ours]:19.2f} ms {r[peer]:19.2f} ms   × {r[ours]/r[peer]:6.2f}')
    e,ratio = exponent(sizes, [r[ours] for r in rows]),rows[-1][ours]/rows[-1][peer]
    good = 'grows as it should' if e<=slope and ratio<=most else 'does NOT grow as it should'
    says = 'a rehearsal' if tiny else good
    print(f'  exponent {e:.2f} (at most {slope:g}), ratio at the end {ratio:.2f} (at most {most:g}): {says}')
    assert len(rows)==len(sizes)

# ---- masks and scopes

# ---- folders of runs

# ---- sweeps and commands

answers = '--help','list','run --help','report --help','bogus','run digit','run digits --round-up'

def bench_commands():
    "Commands that answer load nothing: CPU time of each, to `python -c pass` and to `import torch`"
    says = 'import sys; from fastai_lottery.cli import main; sys.exit(main())'
    arms = {'python -c pass':importing('pass'), 'import torch':importing('import torch')}
    arms |= {f'lottery {o}':fresh('-c', says, *o.split()) for o in answers}
    ms = interleave(arms, 5)
    empty,theirs,*ours = ms.values()
    print()
    for k,v in ms.items(): print(f'  {k:<30} {v:8.0f} ms   × {v/empty:7.2f} of pass   × {v/theirs:5.2f} of torch')
    good = 'as it should' if max(ours)<=1000 else 'NOT as it should'
    print(f'  the slowest {max(ours):.0f} ms (at most 1,000): {"a rehearsal" if tiny else good}')
    assert len(ours)==len(answers)

def bench_worker():
    "What a process loads that plays a seed: CPU time, to that of a Learner alone, which is fastai's"
    opt = 'import torch; torch.optim.SGD([torch.zeros(1, requires_grad=True)], .1)'    # loads torch's compiler
    ours = f'import fastai_lottery.sweeps; {opt}'
    new = f'from fastai_lottery.catalogue import loading\nwith loading(): {ours}'
    arms = dict(learner=f'import fastai.learner; {opt}', worker=ours, loading=new)
    ms = interleave({k:importing(v) for k,v in arms.items()}, 5)
    show('a worker loads, CPU time', ms, 'learner')
    fewer,good = ms['loading']<=ms['learner'],ms['worker']<=1.1*ms['learner']
    print(f'  with `loading` less than a Learner alone, else 1.1 at most: '
          f'{"a rehearsal" if tiny else "as it should" if fewer and good else "NOT as it should"}')
    assert len(ms)==3

# ---- steps, overlaps, loaders
