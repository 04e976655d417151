// The pictures that move on "What a ticket looks like". The last round stands in the page, drawn; of each round a frame
// says what is other there: name of a part → its text and attributes
const code64 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
const levels = s => [...s].map(c => code64.indexOf(c)).flatMap(v => [v>>3, v&7])    // of pixels, 0 to 7
const stroke = i => `M${i%28} ${Math.floor(i/28)}h1`
const put = (part, attrs) => {
  for (const [k, v] of Object.entries(attrs)) k=='text' ? part.textContent = v : part.setAttribute(k, v)
}

for (const root of document.querySelectorAll('.ticket-slider')) {
  const frames = JSON.parse(root.dataset.frames), pick = root.querySelector('input')
  const part = Object.fromEntries([...root.querySelectorAll('[data-part]')].map(o => [o.dataset.part, o]))
  const show = k => {
    for (const [name, o] of Object.entries(frames[k])) {
      if (name!='pixels') { put(part[name], o); continue }
      const ns = levels(o)
      ;[...part.pixels.children].forEach((p, i) => p.setAttribute('d', ns.map((n, at) => n==i+1 ? stroke(at) : '').join('')))
    }
    pick.setAttribute('aria-valuetext', frames[k].said.text)
  }
  pick.parentElement.hidden = false
  pick.addEventListener('input', () => show(+pick.value))
  show(+pick.value)
}
