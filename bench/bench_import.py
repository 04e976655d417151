"What `import fastai_lottery.all` adds to `import fastai.vision.all`"
import subprocess,sys
from common import *

def bench_import():
    def f(code):
        def g():
            t = time.perf_counter()
            subprocess.run([sys.executable,'-W','ignore','-c',code], check=True)
            return 1000*(time.perf_counter()-t)
        return g
    ms = interleave({'fastai.vision.all':f('import fastai.vision.all'), 'and fastai_lottery.all':f('import fastai.vision.all,fastai_lottery.all')}, 7)
    show('import', ms, 'fastai.vision.all')
    assert len(ms)==2
