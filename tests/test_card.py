"The card of a ticket: what it says follows from what there is, and it can be read back"
import re
import pytest
from nets import *
from fastai_lottery.card import *
from fastai_lottery.plots import *

def lot(**kw):
    learn = learner(drop_bn, cbs=[LotteryCallback(**kw)], metrics=accuracy)
    learn.fit_lottery(1, rounds=2, amount=.5, seed=0)
    return learn.lottery

def runs(arms, n=3):
    "Figures of several seeds"
    def row(i, a, s): return a,int(a!='dense'),.5**(a!='dense'),s,.9+.01*s+.001*i
    rows = [row(i, a, s) for i,a in enumerate(arms) for s in range(n)]
    return pd.DataFrame(rows, columns=['arm','round','density','seed','es_test_accuracy'])

def text_of(folder): return (folder/'README.md').read_text(encoding='utf-8')

def test_card_and_ticket_go_together(tmp_path):
    l = lot()
    folder = l.card(tmp_path/'mine', 1, license='mit')
    assert {o.name for o in folder.iterdir()}=={'README.md','ticket.safetensors','lottery.png'}
    s,t = text_of(folder),Ticket.load(folder/'ticket')
    assert t.masks==l.ticket(1).masks and t.digest() in s and t.masks.hash() in s
    assert f'{t.masks.n_kept:,} of {t.masks.numel:,} weights' in s and '# mine' in s
    head = s.split('---')[1]
    assert 'library_name: fastai' in head and 'license: "mit"' in head and '- "accuracy"' in head
    assert [l for l in s.splitlines() if 'this one' in l]==[l for l in s.splitlines() if l.startswith('| 1 |')]

def test_front_matter_is_yaml(tmp_path):
    yaml = pytest.importorskip('yaml')
    d = yaml.safe_load(text_of(lot().card(tmp_path/'mine', 1, license="a: 'b'")).split('---')[1])
    assert d['library_name']=='fastai' and d['license']=="a: 'b'"
    assert 'lottery-ticket' in d['tags'] and d['metrics']==['accuracy']

def test_what_was_not_shown_follows_from_the_controls(tmp_path):
    l = lot()
    def told(**kw): return text_of(l.card(tmp_path/'mine', 1, **kw)).split('## What was not shown')[1]
    alone = told()
    assert 'One seed' in alone and 'new weights' in alone and 'No random mask' in alone
    some = told(results=runs(['dense','ticket','reinit']))
    assert '3 seeds' in some and 'new weights' not in some and 'No random mask' in some
    every = told(results=runs(['dense','ticket','reinit','random']))
    assert 'No random mask' not in every and 'not faster' in every

def test_controls_have_intervals(tmp_path):
    s = text_of(lot().card(tmp_path/'mine', 1, results=runs(['dense','ticket','reinit'])))
    assert '## Beside its controls' in s and re.search(r'\d±\d|\d\s±\s\d', s)

def test_texts_break_no_table(tmp_path):
    r = runs(['dense','ticket','a|<b>`'])
    s = text_of(lot().card(tmp_path/'mine', 1, results=r))
    row = next(l for l in s.splitlines() if 'a\\|' in l)
    assert '<b>' not in s and row.startswith('| weights left')

def test_nothing_is_written_where_there_is_no_ticket(tmp_path):
    l = lot()
    with pytest.raises(ValueError): l.card(tmp_path/'mine', 9)
    with pytest.raises(TypeError): l.card(3)
    assert not (tmp_path/'mine').exists()
