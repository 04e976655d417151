"Runs on disk: what checkpoints add to a round of LeNet/MNIST, and `lottery report` over 100 runs of 20 rounds"
import shutil,subprocess,sys,tempfile
from pathlib import Path
from fastai.basics import Learner,accuracy
from fastai_lottery.all import compare_arms,lenet_300_100,LotteryCallback,play,results
from common import data,interleave,learner,show,sized,timed

EPOCHS = sized(3, 1)
def a_round(dls, on_disk):
    "A function that returns ms a step of a dense round"
    def f():
        l,ms = learner(dls, lenet_300_100(), metrics=accuracy, cbs=LotteryCallback()),[]
        with tempfile.TemporaryDirectory() as d, timed(ms):
            path = d if on_disk else None
            rs = l.fit_lottery(EPOCHS, rounds=0, fit=Learner.fit, lr=1.2e-3, seed=0, eval_every=100, path=path)
        return ms[0]/sum(r['iterations'] for r in rs)
    return f

def bench_checkpoint():
    dls,what = data()
    ms = interleave({'without path':a_round(dls, False), 'with path: checkpoints, ticket':a_round(dls, True)}, 3)
    show(f'LeNet-300-100 on {what}, {EPOCHS} epochs a round: ms a step, all in', ms, 'without path')
    assert len(ms)==2

def many_runs(d, seeds, rounds):
    "A folder of runs: one is played, the others are copies of its tables"
    for _ in play('digits', d, replicates=1, jobs=1, rounds=rounds, epochs=1): pass
    for i in range(1, seeds):
        (s := d/f'seed_{i:02d}').mkdir()
        for f in ('rounds.csv','controls.csv'): shutil.copy(d/'seed_00'/f, s/f)

def bench_report():
    seeds,rounds,ms = sized(100, 2),sized(20, 1),[]
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)/'run'
        many_runs(d, seeds, rounds)
        with timed(ms):
            df = results(d)
            compare_arms(df)
        code = 'from fastai_lottery.cli import main; main()'
        with timed(ms): subprocess.run([sys.executable,'-W','ignore','-c',code,'report',str(d)], check=True, stdout=subprocess.DEVNULL)
    print(f'\nlottery report, {df.seed.nunique()} runs of {df["round"].max()} rounds: {ms[1]/1000:.1f} s as a command, '
          f'of which reading and comparing {ms[0]/1000:.1f} s')
    assert df.seed.nunique()==seeds and df['round'].max()==rounds
