"Runs on disk: what checkpoints add to a round of LeNet/MNIST, and `lottery report` over 100 runs of 20 rounds"
import shutil,subprocess,sys,tempfile
from pathlib import Path
from common import *
from bench_round import data

EPOCHS = 3
def bench_checkpoint():
    dls,what = data()
    def arm(path):
        def f():
            l = learner(dls, lenet_300_100(), metrics=accuracy, cbs=LotteryCallback())
            with tempfile.TemporaryDirectory() as d:
                t = time.perf_counter()
                rs = l.fit_lottery(EPOCHS, rounds=0, fit=Learner.fit, lr=1.2e-3, seed=0, eval_every=100, path=d if path else None)
                return 1000*(time.perf_counter()-t)/sum(r['iterations'] for r in rs)
        return f
    ms = interleave({"without path":arm(False), "with path: checkpoints, ticket":arm(True)}, 3)
    show(f'LeNet-300-100 on {what}, {EPOCHS} epochs a round: ms a step, all in', ms, 'without path')
    assert len(ms)==2

def bench_report():
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)/'run'
        for _ in play('digits', d, replicates=1, jobs=1, rounds=20, epochs=1): pass
        for i in range(1, 100):
            (s := d/f'seed_{i:02d}').mkdir()
            for f in ('rounds.csv','controls.csv'): shutil.copy(d/'seed_00'/f, s/f)
        t = time.perf_counter()
        df = results(d)
        compare_arms(df)
        t1 = time.perf_counter()-t
        t = time.perf_counter()
        subprocess.run([sys.executable, '-W', 'ignore', '-c', 'from fastai_lottery.cli import main; main()', 'report', str(d)], check=True, stdout=subprocess.DEVNULL)
        print(f'\nlottery report, {df.seed.nunique()} runs of {df["round"].max()} rounds: {time.perf_counter()-t:.1f} s as a command, of which reading and comparing {t1:.1f} s')
        assert len(df)>=2100
