"What `import fastai_lottery.all` adds to `import fastai.vision.all`"
import subprocess,sys
from common import interleave,show,timed

def importing(code):
    "A function that returns the ms of a fresh Python with these imports"
    def f():
        ms = []
        with timed(ms): subprocess.run([sys.executable,'-W','ignore','-c',code], check=True)
        return ms[0]
    return f

def bench_import():
    arms = {'fastai.vision.all':importing('import fastai.vision.all'),
            'and fastai_lottery.all':importing('import fastai.vision.all,fastai_lottery.all')}
    ms = interleave(arms, 7)
    show('import', ms, 'fastai.vision.all')
    assert len(ms)==2
