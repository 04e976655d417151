// What is wider than its place scrolls by itself; a faded edge and a line say so until its end is in view
const ends = o => {
  const rest = o.scrollWidth-o.clientWidth
  o.classList.toggle('wider', rest>4)
  o.classList.toggle('more', rest-Math.abs(o.scrollLeft)>4)
}
const sized = new ResizeObserver(os => os.forEach(o => ends(o.target.closest('.cell_output, .table-wrapper'))))
document.querySelectorAll('.cell_output, .table-wrapper').forEach(o => {
  o.addEventListener('scroll', () => ends(o), {passive: true})
  for (const part of [o, ...o.querySelectorAll('img, table')]) sized.observe(part)
})
