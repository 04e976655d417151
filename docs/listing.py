"Write what the catalogue lists of the presets, fastai_lottery/presets.json; with --check, only say whether it is up to date"
import json,sys
from pathlib import Path
root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))     # this checkout, whatever is installed
from fastai_lottery.catalogue import Listed
from fastai_lottery.experiments import table_of
from fastai_lottery.presets import presets

file = root/'fastai_lottery'/'presets.json'

def make():
    "The text of the file: a preset a line, so that a change shows which"
    def row(p, o): return Listed(name=p.name, about=p.about, **{k:o[k] for k in Listed._fields[2:]})._asdict()
    rows = [row(p, o) for p,o in zip(presets.values(), table_of(presets.values()).to_dict('records'))]
    return '[\n'+',\n'.join(json.dumps(o, ensure_ascii=False) for o in rows)+'\n]\n'

def check(text): return file.exists() and file.read_text(encoding='utf-8')==text

if __name__=='__main__':
    text = make()
    if '--check' not in sys.argv: file.write_text(text, encoding='utf-8')
    elif not check(text): sys.exit('presets.json is not what the presets say: run `make export`')
