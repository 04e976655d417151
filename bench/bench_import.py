"What `import fastai_lottery.all` adds to `import fastai.vision.all`"
import os,subprocess,sys
from common import interleave,show,tiny

def fresh(*args):
    """A function that returns the CPU ms of a fresh Python with these arguments, however busy the machine is. Its modules are
    compiled, as those of an installed package are"""
    env = {k:v for k,v in os.environ.items() if k!='PYTHONDONTWRITEBYTECODE'}
    def f():
        was = os.times()
        subprocess.run([sys.executable,'-W','ignore',*args], env=env, capture_output=True)
        now = os.times()
        return 1000*(now.children_user+now.children_system-was.children_user-was.children_system)
    return f

def importing(code): return fresh('-c', code)

def bench_import():
    arms = {'fastai.vision.all':importing('import fastai.vision.all'),
            'and fastai_lottery.all':importing('import fastai.vision.all,fastai_lottery.all')}
    ms = interleave(arms, 7)
    show('import, CPU time', ms, 'fastai.vision.all')
    theirs,both = ms.values()
    says = 'a rehearsal' if tiny else 'as it should' if both<=1.05*theirs else 'NOT as it should'
    print(f'  {both/theirs-1:+.1%} (at most 5 %): {says}')
    assert len(ms)==2
